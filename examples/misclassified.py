"""Draw the test images of CIFAR-10 that a network misclassifies, with class activation maps.

    python examples/misclassified.py                    # the network `quarter` of the package
    python examples/misclassified.py my.safetensors --true cat --pred dog --method hirescam

`cifar-resnet misclassified` does the same and has more options. The network `quarter` misclassifies
886 of the 10,000 images; reading them and running the network takes 2.8 s on 2 cores of an AMD EPYC
(median of 5 runs, benchmarks/results/errors.jsonl).
"""

import argparse

from cifar_resnet import (
    CustomResNet,
    find_misclassified,
    show_calibration,
    show_confusion_matrix,
    show_misclassified,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the errors on the CIFAR-10 test set.")
    parser.add_argument("weights", nargs="?", default="quarter", help="argument of from_pretrained")
    parser.add_argument("--n", type=int, default=25, help="maximum number of errors to draw")
    parser.add_argument("--true", metavar="CLASS", help="only images of this class")
    parser.add_argument("--pred", metavar="CLASS", help="only images predicted as this class")
    parser.add_argument("--method", default="gradcam", help="method of the class activation maps")
    args = parser.parse_args()

    model = CustomResNet.from_pretrained(args.weights)
    found = find_misclassified(model, true_class=args.true, pred_class=args.pred)
    figures = {
        "misclassified": show_misclassified(model, found, n=args.n, method=args.method),
        "confusion_matrix": show_confusion_matrix(found),
        "calibration": show_calibration(found),
    }
    for name, figure in figures.items():
        figure.savefig(f"{name}.png")

    print(f"{found.errors:,} errors in {found.total:,} images, accuracy {found.accuracy:.2%}")
    print("Most frequent:")
    for pair in found.most_confused(5):
        print(f"  {pair.errors:3} images of {pair.true} predicted as {pair.predicted}")


if __name__ == "__main__":
    main()
