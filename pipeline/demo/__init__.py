"""Images made up for a first try, with truth, the same in every run."""
