"""A mosaic as files that other programs open: polygons for QuPath and GIS, rasters with pyramids."""
