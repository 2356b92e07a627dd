"""The node's HTTP side: an ASGI application over a client of the store. See docs/http.md for what it promises."""
