"""The resources of the HTTP listener: one module each, and what `/openapi.json` tells of them."""
