"""From a record to what the network sees: loader on the host, preprocessing on the device."""
