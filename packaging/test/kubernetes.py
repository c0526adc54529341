"""The chart and the Kustomize base, checked without a cluster; see kubernetes.sh beside this."""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml
from helm_python import chart as helm

PACKAGING = pathlib.Path(__file__).resolve().parent.parent
CHART = PACKAGING / "chart"
BASE = PACKAGING / "kustomize" / "base"
# The oldest that the chart allows and the newest that the schemas know.
VERSIONS = ["1.25", "1.37"]

# What sites set, by what they want.
SITES = {
    "nothing set": {},
    "values of GitLab's chart": {
        "gitlab": {"url": "https://gitlab.example.com", "apiUrl": "https://gitlab.example.com/api/v4/"},
        "customerPortalUrl": "https://gitlab.example.com",
        "image": {"tag": "0.1.0"},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": [{"host": "hearth.example.com", "paths": [{"path": "/", "pathType": "ImplementationSpecific"}]}],
            "tls": [{"secretName": "hearth-tls", "hosts": ["hearth.example.com"]}],
        },
        "extraEnvironmentVariables": [{"name": "AIGW_LOGGING__LEVEL", "value": "debug"}],
    },
    "a GPU, a model, TLS and an authority of one's own": {
        "gitlab": {"url": "https://gitlab.example.com"},
        "model": {
            "claim": "weights",
            "list": [{"name": "codestral-22b", "path": "/models/codestral-22b", "context": 16384}],
        },
        "config": "[limits]\nkey_requests = 600\n",
        "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "64Gi"}},
        "runtimeClassName": "nvidia",
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "tls": {"secretName": "hearth-tls"},
        "trustedCA": {"configMap": "authorities"},
        "image": {"digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "registry"}],
        "serviceMonitor": {"enabled": True, "secretName": "hearth-metrics", "labels": {"release": "prometheus"}},
        "networkPolicy": {"enabled": True, "egress": [{"cidr": "10.0.0.10/32", "port": 443}]},
    },
    "several replicas": {
        "gitlab": {"url": "https://gitlab.example.com"},
        "replicaCount": 2,
        "state": {"enabled": False},
        "apiKeys": {"secretName": "hearth-key"},
        "signingKeys": {"secretName": "hearth-signing"},
        "podDisruptionBudget": {"enabled": True},
        "autoscaling": {"enabled": True},
        "metrics": {"open": True},
        "serviceMonitor": {"enabled": True},
        "service": {"type": "LoadBalancer", "annotations": {"example.com/pool": "ai"}},
    },
}

# What cannot work, and what is said of it.
REFUSED = {
    "share no state": {"replicaCount": 2},
    "would make its own API key": {"replicaCount": 2, "state": {"enabled": False}},
    "with its own key": {
        "replicaCount": 2,
        "state": {"enabled": False},
        "apiKeys": {"secretName": "k"},
        "gitlab": {"url": "https://gitlab.example.com"},
    },
    "no volume with them": {"model": {"list": [{"name": "a", "path": "/models/a"}]}},
    "keep Hearth from GitLab": {"networkPolicy": {"enabled": True}, "gitlab": {"url": "https://gitlab.example.com"}},
    "Prometheus would be refused": {"serviceMonitor": {"enabled": True}},
    "ingress.hosts": {"ingress": {"enabled": True}},
    "gitlba": {"gitlba": {"url": "https://gitlab.example.com"}},
    "url": {"gitlab": {"url": "gitlab.example.com"}},
}


def render(values, name="hearth"):
    with helm.Chart.load(CHART) as loaded:
        loaded.validate_schema(values)
        files = loaded.render(values, name=name, namespace="ai")
    documents = []
    for path, text in sorted(files.items()):
        if path.endswith((".yaml", ".yml")):
            documents += [document for document in yaml.safe_load_all(text) if document]
    return documents


def lint(values):
    report = helm.lint(CHART, values, strict=True, namespace="ai")
    wrong = [m for m in report["messages"] if m["severity"] >= 2]
    if wrong or report["errors"]:
        sys.exit(f"error: lint: {wrong} {report['errors']}")


def valid(documents, site):
    """Against the schemas, strictly: an unknown field is an error."""
    count = 0
    for document in documents:
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # An operator's own kind; Kubernetes has no schema of it.
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.VersionNotSupportedError:
                sys.exit(f"error: there are no schemas of Kubernetes {version}")
            except kubernetes_validate.ValidationError as error:
                sys.exit(f"error: {site}: {document['kind']} in {version}: {error.message} at {list(error.path)}")
            count += 1
    return count


def held(documents, site):
    """What every rendering promises: closed pods, and names that lead where they should."""
    by_kind = {document["kind"]: document for document in documents}
    pod = by_kind["Deployment"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    secure = container["securityContext"]
    assert secure["readOnlyRootFilesystem"] and not secure["allowPrivilegeEscalation"], site
    assert secure["capabilities"]["drop"] == ["ALL"], site
    assert pod["spec"]["securityContext"]["runAsNonRoot"], site
    assert pod["spec"]["automountServiceAccountToken"] is False, site
    environment = {e["name"]: e.get("value") for e in container["env"]}
    waits = int(environment["HEARTH__SERVER__DRAIN_DELAY"]) + int(environment["HEARTH__SERVER__DRAIN"])
    assert pod["spec"]["terminationGracePeriodSeconds"] > waits, site
    selector = by_kind["Service"]["spec"]["selector"]
    assert selector.items() <= pod["metadata"]["labels"].items(), site
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in by_kind["Service"]["spec"]["ports"]} <= ports, site
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}, site


def read_by(binary, documents, site):
    """The binary reads what a site's pod would give it: every name and value is one that it knows."""
    by_kind = {document["kind"]: document for document in documents}
    container = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    with tempfile.TemporaryDirectory() as folder:
        settings = pathlib.Path(folder, "hearth.toml")
        settings.write_text(by_kind["ConfigMap"]["data"]["hearth.toml"])
        environment = {e["name"]: e.get("value", "a-secret-of-this-test-0001") for e in container["env"]}
        environment["HEARTH_CONFIG"] = str(settings)
        # A key in PEM form, which is looked at when the server starts.
        environment.pop("HEARTH__GITLAB__SIGNING_KEY", None)
        read = subprocess.run([binary, "config", "check"], env=environment, capture_output=True, text=True, check=False)
    if read.returncode:
        sys.exit(f"error: {site}: {read.stderr}")


def base():
    """The Kustomize base: what the chart renders with nothing set, without Helm's own marks."""
    files = {}
    for document in render({}):
        meta = document["metadata"]
        parts = [meta]
        if document["kind"] == "Deployment":
            template = document["spec"]["template"]["metadata"]
            template.pop("annotations", None)
            parts.append(template)
        for part in parts:
            for label in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
                part["labels"].pop(label, None)
        if "annotations" in meta:
            meta["annotations"].pop("helm.sh/resource-policy", None)
            if not meta["annotations"]:
                del meta["annotations"]
        if document["kind"] == "ConfigMap":
            continue  # Made by kustomize from hearth.toml, so that a change of it starts pods anew.
        files[f"{document['kind'].lower()}.yaml"] = document
    text = {
        name: "# Made from the chart by packaging/test/kubernetes.sh --write.\n" + yaml.safe_dump(document, sort_keys=False)
        for name, document in files.items()
    }
    text["kustomization.yaml"] = "# Made from the chart by packaging/test/kubernetes.sh --write.\n" + yaml.safe_dump(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": sorted(files),
            "configMapGenerator": [{"name": "hearth", "files": ["hearth.toml"]}],
        },
        sort_keys=False,
    )
    text["hearth.toml"] = "# Settings of Hearth, like [[model]]; overlays replace this file.\n"
    return text


def kustomized():
    """Builds base and example with kustomize, where there is one."""
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            break
    else:
        print("kustomize: left out, neither kustomize nor kubectl is here")
        return
    for folder in (BASE, BASE.parent / "example"):
        built = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
        if built.returncode:
            sys.exit(f"error: {folder.name}: {built.stderr}")
        documents = [document for document in yaml.safe_load_all(built.stdout) if document]
        held(documents, folder.name)
        print(f"kustomize {folder.name}: {len(documents)} documents, {valid(documents, folder.name)} checks")


def main():
    if sys.argv[1:] == ["--write"]:
        BASE.mkdir(parents=True, exist_ok=True)
        for old in BASE.glob("*"):
            old.unlink()
        for name, text in base().items():
            (BASE / name).write_text(text)
        return
    version = re.search(r'^version = "(.*)"', (PACKAGING.parent / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    described = yaml.safe_load((CHART / "Chart.yaml").read_text())
    if (described["version"], described["appVersion"]) != (version, version):
        sys.exit(f"error: Chart.yaml has {described['version']} and {described['appVersion']}, Cargo.toml has {version}")
    for site, values in SITES.items():
        lint(values)
        documents = render(values)
        held(documents, site)
        for binary in sys.argv[1:]:
            read_by(binary, documents, site)
        print(f"{site}: {len(documents)} documents, {valid(documents, site)} checks")
    for said, values in REFUSED.items():
        try:
            render(values)
        except Exception as error:  # Whatever Helm's library makes of it: what counts is what it says.
            if said not in str(error):
                sys.exit(f"error: {values} is refused, but not with {said!r}: {error}")
        else:
            sys.exit(f"error: {values} is not refused; it should be said: {said!r}")
    print(f"{len(REFUSED)} mistakes are refused")
    for name, text in base().items():
        path = BASE / name
        if not path.exists() or path.read_text() != text:
            sys.exit(f"error: {path} is not what the chart renders\n  fix: packaging/test/kubernetes.sh --write")
    if {p.name for p in BASE.iterdir()} != set(base()):
        sys.exit(f"error: {BASE} has files that the chart does not render")
    kustomized()


if __name__ == "__main__":
    main()
