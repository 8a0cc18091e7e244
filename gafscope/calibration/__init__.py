"""What follows from agreement: the threshold to use, and the microbatch size to use.

`calibrate` finds the cosine distance that independent micro-gradients seldom fall below;
`predict_curve` tells how agreement grows with the microbatch size, from one size.
"""

from gafscope.calibration.calibrate import calibrate
from gafscope.calibration.calibration import Calibration
from gafscope.calibration.curve import Bounded, Curve
from gafscope.calibration.predict import predict_curve

__all__ = ["Bounded", "Calibration", "Curve", "calibrate", "predict_curve"]
