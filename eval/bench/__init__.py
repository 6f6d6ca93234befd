"""`tokenprune bench`: what policies cost and save in time, beside an oracle that chose in advance."""
