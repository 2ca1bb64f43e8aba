"""One file knows each outside thing. An edge reports what happened; it never raises into the loop."""
