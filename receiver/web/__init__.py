"""The HTTP side: one file per group of routes; `application.create_app` puts them together."""
