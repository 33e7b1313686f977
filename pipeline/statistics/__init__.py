"""What a night's counts say beyond their sums: intervals, comparisons, gates, strata, areas, calibration; numpy only."""
