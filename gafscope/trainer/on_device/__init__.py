"""Steps whose decision stays on the device: nothing waits for it, and a skip is a mask."""

from gafscope.trainer.on_device.step import READ_EVERY, DeviceStep, device_step_of

__all__ = ["READ_EVERY", "DeviceStep", "device_step_of"]
