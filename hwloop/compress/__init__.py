"""One file per compression method; :func:`hwloop.compress.apply.compress` fixes their order."""
