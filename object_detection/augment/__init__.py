"""What changes a training batch on the device, beyond scale, crop, flip and colour."""
