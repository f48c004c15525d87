"""The loop: one backbone, many tasks, exact bookkeeping. Import what you need from the modules; they load torch."""
