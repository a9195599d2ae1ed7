"""The bench: contracts, plan, loading, runner, scoring, metrics, records, tables and the command line."""
