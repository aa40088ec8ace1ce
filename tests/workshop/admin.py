"""An admin module, which no machine is to import."""
