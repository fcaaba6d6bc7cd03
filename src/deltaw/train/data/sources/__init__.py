"""Where rows come from: one file per family of file formats, all read in place and never whole."""
