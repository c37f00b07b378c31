"""monitoring: the alert rules and the dashboard as data: their expressions, the series that these
select, and the rules of policy.py that hold them against the manifests."""
import json
import re

from manifests import label, settings, templates
from policy import argument, rule, triggers

WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "group_left", "group_right",
         "inf", "nan"}
LABELS = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")


def selectors(expression):
    """Each metric that an expression selects, with its matchers, as it stands there."""
    masked = re.sub(r'"(?:[^"\\]|\\.)*"', lambda m: '"' + "_" * (len(m[0]) - 2) + '"', expression)
    masked = LABELS.sub(lambda m: m[1].ljust(len(m[0])), masked)
    found = []
    for m in re.finditer(r"(?<![\w:])([a-zA-Z_:][\w:]*)(?:\s*(\{[^}]*\}|\(|by\b|without\b))?", masked):
        inside = masked.count("{", 0, m.start()) - masked.count("}", 0, m.start())
        quoted = masked.count('"', 0, m.start()) % 2
        if m[1].lower() in WORDS or m[2] in ("(", "by", "without") or inside or quoted:
            continue
        found.append(expression[m.start():m.end()].strip())
    return found


def rules_of(objects):
    return [r for o in objects if o["kind"] == "PrometheusRule" for g in o["spec"]["groups"] for r in g["rules"]]


def groups_of(objects):
    """What a file of rules holds, as prometheus-operator makes it."""
    return {"groups": [g for o in objects if o["kind"] == "PrometheusRule" for g in o["spec"]["groups"]]}


def dashboard(objects):
    return next(json.loads(o["data"]["dashboard.json"]) for o in objects
                if o["kind"] == "ConfigMap" and "dashboard.json" in o.get("data", {}))


def panel_expressions(board):
    """(title, expression) with Grafana's variables filled in."""
    for p in board["panels"]:
        for t in p["targets"]:
            expression = t["expr"].replace("$namespace", ".*")
            yield p["title"], re.sub(r"\$__(rate_interval|range)", "1m", expression)


@rule
def monitor_finds_the_workers(objects):
    for o in objects:
        if o["kind"] != "PodMonitor":
            continue
        wanted = o["spec"]["selector"]["matchLabels"].items()
        for name, template in templates(objects):
            ports = [p["name"] for c in template["spec"]["containers"] for p in c.get("ports", [])]
            if (wanted <= template["metadata"]["labels"].items()) != bool(ports):
                yield f"{label(o)}: {name} has the ports {ports} and labels that say otherwise"
            for endpoint in o["spec"]["podMetricsEndpoints"] if ports else []:
                if endpoint["port"] not in ports or endpoint["path"] != "/metrics":
                    yield f"{label(o)}: {name} has no port {endpoint['port']} with {endpoint['path']}"
    if any(o["kind"] == "PrometheusRule" for o in objects) != any(o["kind"] == "PodMonitor" for o in objects):
        yield "rules without a PodMonitor, or the other way round"


@rule
def keda_rules_name_our_trigger(objects):
    """How an object's name leads to its group, and the threshold, stand in expressions, where nothing
    can fill them in."""
    texts = [r["expr"] for r in rules_of(objects) if "keda" in r["expr"]]
    if not texts:
        return
    text = "\n".join(texts)
    selected = set(re.findall(r'scaledObject=~"([^"]*)"', text))
    replaced = re.findall(r'"group", "([^"]*)", "scaledObject", "([^"]*)"', text)
    for o in {id(o): o for o, _, _ in triggers(objects)}.values():
        name, group = o["metadata"]["name"], argument(o, "group") or settings(objects).get("group")
        if not all(re.fullmatch(s, name) for s in selected):
            yield f"{label(o)}: rules about KEDA select {selected}"
        found = [re.fullmatch(of, name).expand(to.replace("$", "\\")) for to, of in replaced if re.fullmatch(of, name)]
        if found[-1:] != [group]:
            yield f"{label(o)}: rules about KEDA take it for group {found[-1:]}, its workers are {group}"
    cuts = {meta["lagThreshold"] for _, t, meta in triggers(objects) if t["type"] == "kafka"}
    if cuts and set(re.findall(r"% (\d+)", text)) != cuts:
        yield f"rules about KEDA want the threshold {cuts}"


@rule
def monitoring_is_selected(objects):
    """One label for all of it: the knob of the common stack's selector."""
    of = [o for o in objects if o["kind"] in ("PodMonitor", "PrometheusRule")]
    if len({o["metadata"]["labels"].get("release") for o in of}) > 1 or \
            any(not o["metadata"]["labels"].get("release") for o in of):
        yield "PodMonitor and rules differ in the label `release`"
    if of and not any(o["metadata"]["labels"].get("grafana_dashboard") == "1" for o in objects
                      if o["kind"] == "ConfigMap" and "labels" in o["metadata"]):
        yield "no ConfigMap with the label that Grafana's sidecar looks for"


@rule
def alerts_can_be_read(objects):
    names = [r["alert"] for r in rules_of(objects) if "alert" in r]
    for r in rules_of(objects):
        if "alert" in r and (r["labels"].get("severity") not in ("warning", "critical")
                             or not {"summary", "description"} <= r.get("annotations", {}).keys()):
            yield f"{r['alert']}: want a severity, a summary and a description"
    if len(set(names)) != len(names):
        yield f"an alert stands twice: {names}"


