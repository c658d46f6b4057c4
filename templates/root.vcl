vcl 4.1;

# The gateway's first step: host and longest path choose an application. Written by matrix.
{%- if by_host %}
import std;
{%- endif %}

backend default none;

sub vcl_recv {
{%- if by_host %}
    # Host and path as one text, the host in lower case without port and without a last dot.
    set req.http.X-Matrix-Key = regsub(std.tolower(req.http.Host), "\.?(:[0-9]*)?$", "") + req.url;
{%- endif %}
{%- for step in steps %}
{%- if step.kind == "open" %}
{{ step.depth | spaces }}if ({{ step.subject }} ~ {{ step.pattern | quoted }}) {
{%- elif step.kind == "go" %}
{{ step.depth | spaces }}if ({{ step.subject }} ~ {{ step.pattern | quoted }}) {
{{ step.depth | spaces }}    return (vcl({{ step.label }}));
{{ step.depth | spaces }}}
{%- else %}
{{ step.depth | spaces }}}
{%- endif %}
{%- endfor %}
    return (synth(404));
}

sub vcl_synth {
    set resp.http.Content-Type = "text/html; charset=utf-8";
    set resp.http.Cache-Control = "no-store";
    set resp.body = {"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Not found</title></head>
<body><h1>Not found</h1><p>No application serves this address.</p></body></html>
"};
    return (deliver);
}
