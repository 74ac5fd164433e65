"""The HTTP server: routes, access, limits; every cure for MONAI Label's server."""
