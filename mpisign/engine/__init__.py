"""What every collective shares: headers, agreement, progress, failure detection."""
