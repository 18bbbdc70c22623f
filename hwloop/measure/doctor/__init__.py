"""What is missing or wrong, here and on a target, and the command that fixes it.

Facts are gathered by :func:`hwloop.measure.doctor.facts.host_facts` here and by the worker's state
there; the checks are plain functions of them. :mod:`hwloop.measure.doctor.engines` builds and times
what only the hardware can tell; nothing is changed or installed. No framework is imported before
that, and without a target no package at all: this machine may have none.
"""
