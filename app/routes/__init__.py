"""The routes, and the ASGI application that they make up."""
