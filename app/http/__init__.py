"""HTTP without any route: connections, bodies, keys, origins, errors, the static page."""
