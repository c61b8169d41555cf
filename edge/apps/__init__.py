"""Projects for apps, generated from an artifact: Android, iOS, C++, Python and web."""
