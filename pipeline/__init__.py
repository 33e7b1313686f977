"""The library behind gigamask: from an archive of huge images to label mosaics and counts. No Prefect below here."""

__version__ = "0.1.0"
