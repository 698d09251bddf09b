"""Tables and figures made from trial records alone; nothing here needs torch or the networks themselves."""
