"""An OpenAI-compatible HTTP server over one or more compositions: `eft serve`, or `create_app` inside another program.

protocol, responses_protocol   bodies as they arrive           compositions   names, weights, which engine
chat, completions, responses   one API each: body -> request -> body or events
streaming                      events to the wire; a client that leaves, time limits
guard, hosts, errors, metrics  what stands around every request
listening, connections, run    sockets and TLS; what a client may take of a connection; uvicorn
records, watching, outcomes    one request: its id, what is known of it, how it ended
logs, access_log, metrics, engine_metrics, tracing, spans, health, wording    what operators see of it, and clients of errors
app, settings, command         assembled, configured, started
"""

from __future__ import annotations
