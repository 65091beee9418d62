"""The one place that runs the law: for many runs, by one clock, telling those whose view has changed."""
