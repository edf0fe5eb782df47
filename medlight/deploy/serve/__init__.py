"""A bundle behind two doors: HTTP, and DICOM's C-STORE. One prediction runs at a time, whichever door it came by."""
