vcl 4.1;
# What the gateway's Varnish runs until the manager has loaded a release's routes.

backend default none;

sub vcl_recv {
    return (synth(503, "No routes yet"));
}

sub vcl_synth {
    set resp.http.Retry-After = "2";
    set resp.http.Content-Type = "text/plain; charset=utf-8";
    synthetic("The manager has not loaded any route yet." + {"
"});
    return (deliver);
}
