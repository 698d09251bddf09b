"""A network as the suite sees it: which layers can be factored and why others not, what a pass runs, what it costs."""
