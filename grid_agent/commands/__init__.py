"""The commands of `grid-agent`, one file per topic; `cli` only registers them."""
