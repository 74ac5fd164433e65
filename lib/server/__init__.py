"""Web server: routes, request and response models, access control, and changes to MONAI Label's application."""
