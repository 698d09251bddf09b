"""Tables and figures made from trial records alone. Nothing here needs torch or the networks themselves."""
