"""`eagleray certify`: what a training would compute on its mesh."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..display import print_table
from ..session import Session
from ..workflows.artifacts import Certificate
from ..workflows.errors import EaglerayError
from ..workflows.store import make_record
from .common import DEFAULT_HOME, AsJson, Home, Overrides, SpecFile, Store, err, out

if TYPE_CHECKING:
    from ..actors.training.certificate import Finding, Training


def certify(
    spec: SpecFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
    store: Store = None,
) -> None:
    """Prove that trainings compute on their mesh what one process does, and certify those that do.

    The model of each, at toy width and in double precision, takes three steps in processes of this machine,
    under the training's own mesh, schedule and loss, and three in one process of plain PyTorch. It needs no
    cluster, no corpus and no GPU. Fails if a loss, a gradient or a weight differs by more than rounding.

    Certificates lie beside the artifacts. One serves every training that is the same at toy width, of any
    steps and widths and on any corpus, until Eagleray's code or a library changes. `run` asks for the
    certificates of the meshes that it is to train on.
    """
    from ..actors.training.certificate import mesh_of, trainings

    session = Session(home, store)
    workflow = session.load(spec, overrides or [])
    rows: list[dict[str, object]] = []
    for name, training in trainings(workflow.stages):
        mesh = mesh_of(training.spec.parallel)
        for found in _findings(session, name, mesh, training):
            rows.append(
                {
                    "stage": name,
                    "mesh": mesh,
                    "compared": found.what,
                    "difference": f"{found.difference:.1e}",
                    "where": found.where,
                    "holds": found.holds,
                }
            )
    print_table(out, rows, as_json, "no stage trains")
    if not all(row["holds"] for row in rows):
        raise EaglerayError(
            "on this mesh it would not compute what one process does",
            "it is no fault of the spec: report the table, and train on another mesh meanwhile",
            ", ".join(dict.fromkeys(str(row["stage"]) for row in rows if not row["holds"])),
        )


def _findings(session: Session, name: str, mesh: str, training: Training) -> list[Finding]:
    """What a training's certificate says; one is made if there is none and all holds."""
    from ..actors.training.certificate import read_findings, write_certificate
    from ..actors.training.certifying import certify as compare

    fingerprint = training.fingerprint
    record = session.store.find(fingerprint)
    if record is not None:
        err.print(f"{name}: {mesh} has the certificate {fingerprint[:12]}")
        return read_findings(session.store.open(record).path)
    err.print(f"{name}: {mesh}")
    findings = compare(training)
    if all(finding.holds for finding in findings):
        with tempfile.TemporaryDirectory(prefix="eagleray-certificate-") as folder:
            write_certificate(Path(folder), training, findings)
            record = make_record(
                Certificate,
                Path(folder),
                fingerprint=fingerprint,
                stage=name,
                kind="certify",
                run_id="",
                spec=training.proven,
                inputs={},
                facts={"mesh": mesh, "difference": max(finding.difference for finding in findings)},
            )
            session.store.commit(record, Path(folder))
    return findings
