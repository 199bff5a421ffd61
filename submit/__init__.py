"""The laptop side: everything behind the `rayferry` command."""
