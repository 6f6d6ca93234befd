"""`tokenprune tune`: the fastest way to prune within an allowed loss; `search` says how, and what is promised."""
