"""Image sets from files that you have. Nothing is downloaded but what ``hugging_face`` is told to.

Inputs are float32 (N, C, H, W), (pixel / 255 - mean) / std by channel; targets int64. Whole sets are kept a byte a
value and normalised batch by batch; folders of images and Hugging Face's sets are read an image at a time.
"""

from roundelay.data.images.cifar import CIFAR10_CLASSES as CIFAR10_CLASSES
from roundelay.data.images.cifar import CIFAR10_MEAN as CIFAR10_MEAN
from roundelay.data.images.cifar import CIFAR10_STD as CIFAR10_STD
from roundelay.data.images.cifar import cifar10, cifar100
from roundelay.data.images.digits import digits
from roundelay.data.images.femnist import femnist
from roundelay.data.images.folders import image_folder
from roundelay.data.images.hub import from_tables as from_tables
from roundelay.data.images.hub import hugging_face
from roundelay.data.images.idx import MNIST_MEAN as MNIST_MEAN
from roundelay.data.images.idx import MNIST_STD as MNIST_STD
from roundelay.data.images.idx import fashion_mnist, mnist
from roundelay.data.images.pixels import PixelExamples as PixelExamples

__all__ = ["cifar10", "cifar100", "digits", "fashion_mnist", "femnist", "hugging_face", "image_folder", "mnist"]
