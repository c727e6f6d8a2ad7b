"""What is published about CIFAR-10 and CIFAR-100: names, counts, checksums, classes."""

from __future__ import annotations

from dataclasses import dataclass

SIDE = 32
PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Layout:
    """One published form of the set: `train` and `test` map file name -> number of images."""

    folder: str
    train: dict[str, int]
    test: dict[str, int]


@dataclass(frozen=True)
class CifarSpec:
    """Everything the reader enforces; a smaller one describes a smaller archive.

    label_bytes: bytes before each image in the binary layout, the last of which is the label; label_key: the labels'
    key in the python layout; python_md5: file name -> published md5; mean, std: of the training pixels / 255.
    """

    name: str
    classes: tuple[str, ...]
    url: str
    md5: str
    binary: Layout
    label_bytes: int
    python: Layout
    label_key: str
    python_md5: dict[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def archive(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def file_bytes(self, images: int) -> int:
        """Size of a file of the binary layout."""
        return images * (self.label_bytes + PIXELS)


CIFAR10 = CifarSpec(
    name="cifar10",
    classes=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),  # noqa: SIM905
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    binary=Layout(
        "cifar-10-batches-bin", {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}, {"test_batch.bin": 10_000}
    ),
    label_bytes=1,
    python=Layout("cifar-10-batches-py", {f"data_batch_{i}": 10_000 for i in range(1, 6)}, {"test_batch": 10_000}),
    label_key="labels",
    python_md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = CifarSpec(
    name="cifar100",
    classes=tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
    ),
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    binary=Layout("cifar-100-binary", {"train.bin": 50_000}, {"test.bin": 10_000}),
    label_bytes=2,
    python=Layout("cifar-100-python", {"train": 50_000}, {"test": 10_000}),
    label_key="fine_labels",
    python_md5={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
