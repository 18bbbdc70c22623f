"""What is missing or wrong on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwloop.device.trt_import import OLDEST
from hwloop.measure.doctor.check import (
    FAIL,
    OK,
    OLDEST_PYTHON,
    WARN,
    Check,
    dotted,
    load,
    numbers,
    room,
    tensorrt_problem,
)
from hwloop.measure.doctor.facts import (
    DRIVER,
    NEEDED,
    ORT_KINDS,
    TENSORRT_KINDS,
    HostFacts,
    host_facts,
)
from hwloop.measure.doctor.wheels import (
    OLD_DRIVER,
    WHEELS,
    Machine,
    get_cuda,
    get_tensorrt,
    newer_tensorrt,
)

if TYPE_CHECKING:
    from hwloop.measure.profile import TargetProfile

NETWORK_DISKS = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p")


def host_checks(profile: TargetProfile | None, facts: HostFacts | None = None) -> list[Check]:
    """The lines about this machine; ``facts`` are gathered where none are given."""
    facts = host_facts() if facts is None else facts
    here = profile is not None and profile.transport == "local"
    trt_here = profile is not None and profile.kind.on_gpu and here
    checks = [_python(facts), *_packages(facts), _onnxruntime(facts)]
    if trt_here:
        checks.append(_driver(facts))
    if trt_here or facts.tensorrt_place:
        checks.append(_tensorrt(facts, needed=trt_here))
    if trt_here or facts.cuda_backends:
        checks.append(_cuda(facts, needed=trt_here))
    checks.append(_ssh(facts, needed=profile is not None and profile.transport == "ssh"))
    checks += room(facts.free_bytes, "the working folder")
    if facts.file_system in NETWORK_DISKS:
        what = f"the working folder is on a network disk ({facts.file_system}): locks may fail"
        checks.append(Check(state=WARN, what=what, fix="--run and --table on a local disk"))
    checks.append(load(facts.load_average, facts.cores))
    if profile is not None and not profile.verified:
        checks.append(_unverified(profile))
    return checks


def _python(facts: HostFacts) -> Check:
    text = f"Python {dotted(facts.python)}"
    if facts.python < OLDEST_PYTHON:
        return Check(state=FAIL, what=f"{text}: 3.10 or newer is needed", fix="install a newer one")
    return Check(state=OK, what=text)


def _packages(facts: HostFacts) -> list[Check]:
    checks = []
    for name, oldest in NEEDED.items():
        version = facts.versions.get(name)
        if version is None:
            what, state = f"{name} is not installed", FAIL
        elif numbers(version) < numbers(oldest):
            what, state = f"{name} {version}: {oldest} or newer is needed", FAIL
        else:
            what, state = f"{name} {version}", OK
        fix = None if state == OK else install(name)
        checks.append(Check(state=state, what=what, fix=fix))
    return checks


def install(*names: str) -> str:
    """The command that installs needed packages, or newer ones."""
    wanted = " ".join(f'"{name}>={NEEDED[name]}"' for name in names)
    return f"python -m pip install {wanted}"


def _onnxruntime(facts: HostFacts) -> Check:
    found = [name for name in ORT_KINDS if name in facts.versions]
    if not found:
        what = "ONNX Runtime is not installed: every exported file is checked with it"
        return Check(state=FAIL, what=what, fix='python -m pip install "hwloop[cpu]"')
    text = " and ".join(f"{name} {facts.versions[name]}" for name in found)
    if len(found) > 1:  # they own the same folder: the last one installed wins, in parts
        remove = f"python -m pip uninstall -y {' '.join(found)}"
        fix = f"{remove}   then: python -m pip install onnxruntime   (or onnxruntime-gpu)"
        return Check(state=FAIL, what=f"{text} overwrite each other's files", fix=fix)
    return Check(state=OK, what=text)


def _driver(facts: HostFacts) -> Check:
    if facts.cuda_driver is None:
        what = f"no NVIDIA driver ({DRIVER}): nothing of CUDA runs"
        fix = "NVIDIA's driver, 580 or newer; in a container: --runtime nvidia, or --gpus all"
        if facts.jetson:
            fix = "in a container: --runtime nvidia; else: sudo apt install nvidia-l4t-cuda"
        return Check(state=FAIL, what=what, fix=fix)
    text = f"the driver runs CUDA {dotted(facts.cuda_driver)} and older"
    if facts.cuda_driver[0] < min(WHEELS):
        return Check(state=FAIL, what=f"{text}: 12 is needed", fix=OLD_DRIVER)
    return Check(state=OK, what=text)


def _tensorrt(facts: HostFacts, *, needed: bool) -> Check:
    machine = _machine(facts)
    bad = FAIL if needed else WARN
    if facts.tensorrt_place is None and facts.hidden_tensorrt:
        what = f"{facts.environment} does not see the system's TensorRT ({facts.hidden_tensorrt})"
        fix = "/usr/bin/python3 -m venv --system-site-packages NEW   and install hwloop there"
        return Check(state=FAIL, what=what, fix=fix)
    if facts.tensorrt_place is None:
        return Check(state=FAIL, what="TensorRT is not installed", fix=get_tensorrt(machine))
    version = next((facts.versions[n] for n in TENSORRT_KINDS if n in facts.versions), None)
    origin = "apt" if "/dist-packages" in facts.tensorrt_place else "pip"
    text = f"TensorRT {version or 'of unknown version'}, from {origin} ({facts.tensorrt_place})"
    wheels = [cuda for cuda, name in WHEELS.items() if name in facts.versions]
    if len(wheels) > 1:  # they own the same folder, as the two of ONNX Runtime do
        names = " ".join(sorted(set(TENSORRT_KINDS) & set(facts.versions)))
        fix = f"python -m pip uninstall -y {names}   then: {get_tensorrt(machine)}"
        what = "the wheels of TensorRT for CUDA 12 and 13 overwrite each other's files"
        return Check(state=FAIL, what=what, fix=fix)
    newest = facts.cuda_driver[0] if facts.cuda_driver else None
    if wheels and newest is not None and wheels[0] > newest:
        what = f"{text}: for CUDA {wheels[0]}, the driver runs {newest}: it would end in error 35"
        uninstall = f"python -m pip uninstall -y tensorrt {WHEELS[wheels[0]]}"
        return Check(state=bad, what=what, fix=f"{uninstall}   then: {get_tensorrt(machine)}")
    problem = None if version is None else tensorrt_problem(version)
    if problem is None:
        return Check(state=OK, what=text)
    too_old = numbers(version or "") < OLDEST
    apt = "NVIDIA's apt packages of TensorRT, newer ones"
    fix = newer_tensorrt(machine) if origin == "pip" or facts.jetson else apt
    return Check(state=bad if too_old else WARN, what=f"{text}: {problem}", fix=fix)


def _cuda(facts: HostFacts, *, needed: bool) -> Check:
    bad = FAIL if needed else WARN
    if not facts.cuda_backends:
        what = "no way to CUDA's memory and streams (libcudart, cuda-bindings or pycuda)"
        return Check(state=bad, what=what, fix=get_cuda(_machine(facts)))
    text = f"CUDA through {' or '.join(facts.cuda_backends)}"
    bindings = numbers(facts.versions.get("cuda-bindings", ""))[:1]
    if bindings and facts.cuda_driver and bindings > facts.cuda_driver[:1]:
        what = f"{text}; cuda-bindings {bindings[0]} needs a driver for CUDA {bindings[0]}"
        return Check(state=bad, what=what, fix=get_cuda(_machine(facts)))
    return Check(state=OK, what=text)


def _machine(facts: HostFacts) -> Machine:
    cuda = facts.cuda_driver[0] if facts.cuda_driver else None
    return Machine(jetson=facts.jetson, cuda=cuda, x86=facts.machine == "x86_64")


def _ssh(facts: HostFacts, *, needed: bool) -> Check:
    if facts.ssh:
        return Check(state=OK, what="ssh is there")
    what = "no ssh, which reaches boards"
    state = FAIL if needed else WARN
    return Check(state=state, what=what, fix="sudo apt install openssh-client")


def _unverified(profile: TargetProfile) -> Check:
    if profile.simulated:
        what = f"target {profile.name!r} computes latencies: nothing of it is measured"
        return Check(state=OK, what=what)
    from hwloop.measure.profile import document

    what = f"the project has not run target {profile.name!r} on real hardware yet"
    fix = f"{document('docs/on-hardware.md')} says what to look at and to send"
    return Check(state=WARN, what=what, fix=fix)
