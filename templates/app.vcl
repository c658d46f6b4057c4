vcl 4.1;

# Application {{ name }}: {{ backends | length }} of its instances serve. Written by matrix.
import directors;
import std;

{%- for backend in backends %}
backend {{ backend.id }} {
    .host = "{{ backend.host }}";
    .port = "{{ backend.port }}";
    .connect_timeout = 0.3s;
    .first_byte_timeout = 60s;
    .between_bytes_timeout = 300s;
{%- if backend.probe %}
    .probe = {
{%- if backend.probe.request %}
        .request ={% for line in backend.probe.request %} {{ line | quoted }}{% endfor %};
{%- else %}
        .url = {{ backend.probe.path | quoted }};
{%- endif %}
        .expected_response = {{ backend.probe.status }};
        .interval = {{ backend.probe.interval }}s;
        .timeout = {{ backend.probe.timeout }}s;
        .window = 3;
        .threshold = 2;
        # Verified before it was routed: healthy until probes say otherwise.
        .initial = 2;
    }
{%- endif %}
}
{%- else %}
backend default none;
{%- endfor %}

{%- if several %}
sub vcl_init {
{%- if canary %}
    # In turn, for the first attempt: those that are tried out, or the others; each stands in where no other is healthy.
    new trial = directors.round_robin();
{%- for id in canary.new %}
    trial.add_backend({{ id }});
{%- endfor %}
    new usual = directors.round_robin();
{%- for id in canary.old %}
    usual.add_backend({{ id }});
{%- endfor %}
    new trial_first = directors.fallback();
    trial_first.add_backend(trial.backend());
    trial_first.add_backend(usual.backend());
    new usual_first = directors.fallback();
    usual_first.add_backend(usual.backend());
    usual_first.add_backend(trial.backend());
{%- else %}
    # In turn, for the first attempt.
    new turn = directors.round_robin();
{%- for backend in backends %}
    turn.add_backend({{ backend.id }});
{%- endfor %}
{%- endif %}
    # In an order of its own for each URL, for further attempts.
    new other = directors.shard();
{%- for backend in backends %}
    other.add_backend({{ backend.id }});
{%- endfor %}
    other.set_warmup(0.0);
    other.set_rampup(0s);
    other.reconfigure();
}
{%- endif %}

sub vcl_recv {
    if (req.method == "CONNECT" || req.method == "PRI") {
        return (synth(405));
    }
    if (!req.http.Host && req.proto == "HTTP/1.1") {
        return (synth(400));
    }
{%- if not backends %}
    return (synth(503));
{%- else %}
    # What only the gateway says, whatever the client sent. Varnish itself appends to X-Forwarded-For.
    unset req.http.Forwarded;
    unset req.http.X-Forwarded-Prefix;
    unset req.http.X-Matrix-Failed;
    unset req.http.X-Matrix-Chunked;
    set req.http.X-Forwarded-Host = req.http.Host;
    set req.http.X-Forwarded-Proto = "http";
{%- if strip_by_host %}
    set req.http.X-Matrix-Key = regsub(std.tolower(req.http.Host), "\.?(:[0-9]*)?$", "") + req.url;
{%- endif %}
{%- for step in strip %}
    {% if not loop.first %}else {% endif %}if ({{ step.subject }} ~ {{ step.pattern | quoted }}) {
{%- if step.prefix %}
        set req.http.X-Forwarded-Prefix = {{ step.prefix | quoted }};
        set req.url = regsub(req.url, {{ step.remove | quoted }}, "/");
{%- endif %}
    }
{%- endfor %}
{%- if strip_by_host %}
    unset req.http.X-Matrix-Key;
{%- endif %}
{%- if canary %}
    if (std.random(0, 100) < {{ canary.share }}) {
        set req.backend_hint = trial_first.backend();
    } else {
        set req.backend_hint = usual_first.backend();
    }
{%- elif several %}
    set req.backend_hint = turn.backend();
{%- endif %}
    if (req.http.Upgrade && req.http.Upgrade ~ "(?i)^websocket$" && req.http.Sec-WebSocket-Key) {
        return (pipe);
    }
{%- if idempotent %}
    # A body that is kept can be sent again; a larger one is not kept.
    if (req.http.Content-Length ~ "^[0-9]{1,6}$") {
        std.cache_req_body(1MB);
    }
{%- endif %}
    if (req.http.Transfer-Encoding) {
        set req.http.X-Matrix-Chunked = "yes";
        return (pass);
    }
    if (req.method != "GET" || req.http.Authorization || req.http.Cookie || req.http.Range || req.http.Content-Length) {
        return (pass);
    }
{%- if not cache_seconds %}
    # Nobody waits for another's answer: it may turn out not to be shared.
    set req.hash_ignore_busy = true;
{%- endif %}
    return (hash);
{%- endif %}
}

sub vcl_hash {
    hash_data("{{ id }}");
    hash_data(req.http.X-Forwarded-Prefix);
    hash_data(req.url);
    hash_data(req.http.Host);
    return (lookup);
}

sub vcl_pipe {
    set bereq.http.Upgrade = req.http.Upgrade;
    set bereq.http.Connection = "Upgrade";
    return (pipe);
}

sub vcl_backend_fetch {
{%- if retries > 0 %}
    # A node without power refuses nothing: on a connection that was open, its silence is all there is. So what may be
    # repeated waits {{ patience }} s (ten times the health check's timeout, at least 3 s) at the first two
    # instances, and as long as any other request at the last.
    if (bereq.retries < 2 && bereq.retries < {{ retries }} && (bereq.method == "GET" || bereq.method == "HEAD" || bereq.method == "OPTIONS")) {
        set bereq.first_byte_timeout = {{ patience }}s;
    } else if (bereq.retries > 0) {
        set bereq.first_byte_timeout = 60s;
    }
{%- endif %}
    # The built-in code would drop a GET's body.
    return (fetch);
}

sub vcl_backend_response {
    if (bereq.uncacheable) {
        return (deliver);
    }
    set beresp.grace = 0s;
    if (beresp.http.Set-Cookie || beresp.http.Vary ~ "\*" || beresp.http.Pragma ~ "(?i)no-cache"
        || beresp.http.Cache-Control ~ "(?i)no-cache|no-store|private" || beresp.http.Surrogate-Control ~ "(?i)no-store") {
        return (pass(10s));
    }
    # An answer that says how long it may be kept; Varnish has read it into the ttl.
    if (beresp.http.Cache-Control ~ "(?i)\b(?:s-maxage|max-age)\s*=") {
        if (beresp.ttl > 0s) {
            return (deliver);
        }
        return (pass(10s));
    }
    # Varnish takes a date that cannot be read (0, -1), and the first of all dates, for none: such an answer is old.
    if (beresp.http.Expires) {
        if (beresp.ttl > 0s && std.time(beresp.http.Expires, now) > now) {
            return (deliver);
        }
        return (pass(10s));
    }
{%- if cache_seconds %}
    # The plan keeps what says nothing.
    if (beresp.status == 200 || beresp.status == 203 || beresp.status == 301 || beresp.status == 308) {
        set beresp.ttl = {{ cache_seconds }}s;
        return (deliver);
    }
{%- endif %}
    return (pass(10s));
}

sub vcl_backend_error {
{%- if retries > 0 %}
    # Sent again to another instance: what is safe to repeat, and what has a body (Varnish refuses to repeat one
    # that has begun to flow, so it never arrives twice). A POST without a body could arrive twice: not sent again.
    if (bereq.retries < {{ retries }}{% if not idempotent %} && (bereq.method == "GET" || bereq.method == "HEAD" || bereq.method == "OPTIONS"
        || bereq.http.Content-Length ~ "[1-9]" || bereq.http.X-Matrix-Chunked){% endif %}) {
        if (bereq.retries == 0) {
            set bereq.http.X-Matrix-Failed = beresp.backend;
        }
        set bereq.backend = other.backend(by=URL, alt=bereq.retries, resolve=NOW);
        if (bereq.backend == beresp.backend || bereq.http.X-Matrix-Failed == "" + bereq.backend) {
            set bereq.backend = other.backend(by=URL, alt=bereq.retries + 1, resolve=NOW);
        }
        return (retry);
    }
{%- endif %}
    set beresp.status = 503;
    set beresp.ttl = 0s;
    set beresp.grace = 0s;
    set beresp.uncacheable = true;
    set beresp.http.Content-Type = "text/html; charset=utf-8";
    set beresp.http.Cache-Control = "no-store";
    set beresp.http.Retry-After = "2";
    set beresp.body = {"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Not available</title></head>
<body><h1>Not available at the moment</h1><p>This application does not answer. Please try again.</p></body></html>
"};
    return (deliver);
}

sub vcl_synth {
    set resp.http.Content-Type = "text/html; charset=utf-8";
    set resp.http.Cache-Control = "no-store";
    if (resp.status == 503) {
        set resp.http.Retry-After = "2";
        set resp.body = {"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Not available</title></head>
<body><h1>Not available at the moment</h1><p>This application does not answer. Please try again.</p></body></html>
"};
    } else {
        set resp.body = {"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Refused</title></head>
<body><h1>Refused</h1><p>The gateway does not pass on such a request.</p></body></html>
"};
    }
    return (deliver);
}
