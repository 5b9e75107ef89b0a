"""How requests reach the server: connections, sockets, TLS, and what stands in front of every route."""
