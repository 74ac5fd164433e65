"""Work behind the server: processes that end with it, and that let it go first."""
