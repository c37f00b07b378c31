package main

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kubelet is a small one of ours with the Job controller's and the ReplicaSet's part in it: a pod
// for each Job that is not finished, as many pods as a Deployment wants, and their status back.
type kubelet struct {
	c              *cluster
	r              *records
	binary, folder string
	exits          chan exit
	mutex          sync.Mutex
	pods           map[string]*pod
	failures       map[string]int32 // of a Job, for its backoffLimit
	started        int
	over           chan struct{}
	idle           chan struct{}
}

func startKubelet(c *cluster, binary, folder string) *kubelet {
	k := &kubelet{c: c, r: c.r, binary: binary, folder: folder, exits: make(chan exit, 64),
		pods: map[string]*pod{}, failures: map[string]int32{}, over: make(chan struct{}),
		idle: make(chan struct{})}
	go k.run()
	return k
}

func (k *kubelet) run() {
	defer close(k.idle)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-k.over:
			k.leave()
			return
		case e := <-k.exits:
			k.guarded("exit", func() error { return k.exited(e) })
		case <-tick.C:
			k.guarded("jobs", k.jobs)
			k.guarded("deployments", k.deployments)
			k.guarded("probes", k.probes)
		}
	}
}

func (k *kubelet) guarded(what string, do func() error) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	// A write that another's came before is made again at the next turn.
	if err := do(); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		k.r.put("kubelet_error", fields{"in": what, "error": err.Error()})
	}
}

func (k *kubelet) leave() {
	for _, p := range k.pods {
		_ = p.cmd.Process.Kill()
	}
	for len(k.pods) > 0 {
		e := <-k.exits
		delete(k.pods, e.p.name)
	}
}

func (k *kubelet) stop() {
	close(k.over)
	<-k.idle
}

func (k *kubelet) of(kind, owner string) []*pod {
	var found []*pod
	for _, p := range k.pods {
		if p.kind == kind && p.owner == owner {
			found = append(found, p)
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].name < found[j].name })
	return found
}

func (k *kubelet) add(kind, owner, ns, generation string, t corev1.PodTemplateSpec) error {
	k.started++
	p := &pod{name: fmt.Sprintf("%s-%03d", owner, k.started), owner: owner, kind: kind,
		generation: generation, template: *t.DeepCopy()}
	if err := k.start(p, ns); err != nil {
		return err
	}
	k.pods[p.name] = p
	labels := map[string]string{"kind": kind}
	if kind == "Job" {
		labels["job-name"] = owner
	}
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.name, Namespace: ns, Labels: labels},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "worker", Image: "none"}}}}
	if err := k.c.own.Create(context.Background(), o); err != nil {
		return err
	}
	o.Status.Phase = corev1.PodRunning
	return k.c.own.Status().Update(context.Background(), o)
}

func (k *kubelet) jobs() error {
	ctx, list := context.Background(), &batchv1.JobList{}
	if err := k.c.own.List(ctx, list); err != nil {
		return err
	}
	there := map[string]bool{}
	for i := range list.Items {
		j := &list.Items[i]
		there[j.Name] = true
		if jobFinished(j) || j.DeletionTimestamp != nil || len(k.of("Job", j.Name)) > 0 {
			continue
		}
		if j.Status.StartTime == nil {
			now := metav1.Now()
			j.Status.StartTime, j.Status.Active = &now, 1
			if err := k.c.own.Status().Update(ctx, j); err != nil {
				return err
			}
		}
		generation := j.Annotations["scaledjob.keda.sh/generation"]
		if err := k.add("Job", j.Name, j.Namespace, generation, j.Spec.Template); err != nil {
			return err
		}
	}
	for _, p := range k.pods {
		if p.kind == "Job" && !there[p.owner] && !p.stopping {
			k.end(p, "its Job was deleted")
		}
		if p.stopping && time.Now().After(p.killAt) {
			k.r.put("pod_killed", fields{"pod": p.name})
			_ = p.cmd.Process.Kill()
		}
	}
	return nil
}

func (k *kubelet) deployments() error {
	ctx, list := context.Background(), &appsv1.DeploymentList{}
	if err := k.c.own.List(ctx, list); err != nil {
		return err
	}
	for i := range list.Items {
		d := &list.Items[i]
		live := slices.DeleteFunc(k.of("Deployment", d.Name), func(p *pod) bool { return p.stopping })
		want := int(*d.Spec.Replicas)
		for n := len(live); n < want; n++ {
			if err := k.add("Deployment", d.Name, d.Namespace, "", d.Spec.Template); err != nil {
				return err
			}
		}
		for n := len(live); n > want; n-- { // the newest; nobody may count on a choice
			k.end(live[n-1], "fewer replicas")
		}
		if d.Status.Replicas != int32(want) {
			d.Status.Replicas = int32(want)
			if err := k.c.own.Status().Update(ctx, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *kubelet) probes() error {
	for _, p := range k.pods {
		if p.ready || p.stopping {
			continue
		}
		if code, _ := p.ask("/readyz"); code == 200 {
			p.ready = true
			k.r.put("pod_ready", fields{"pod": p.name})
		}
	}
	return nil
}

// verdict is podFailurePolicy's: the first rule that knows the exit code.
func verdict(policy *batchv1.PodFailurePolicy, code int32) batchv1.PodFailurePolicyAction {
	if policy != nil {
		for _, r := range policy.Rules {
			if r.OnExitCodes != nil && slices.Contains(r.OnExitCodes.Values, code) {
				return r.Action
			}
		}
	}
	return batchv1.PodFailurePolicyActionCount
}

func (k *kubelet) exited(e exit) error {
	ctx := context.Background()
	delete(k.pods, e.p.name)
	k.r.put("pod_exited", fields{"pod": e.p.name, "owner": e.p.owner, "code": e.code,
		"stopped": e.p.stopping})
	pods := &corev1.PodList{}
	if err := k.c.own.List(ctx, pods); err != nil {
		return err
	}
	for i := range pods.Items {
		o := &pods.Items[i]
		if o.Name != e.p.name {
			continue
		}
		o.Status.Phase = corev1.PodSucceeded
		if e.code != 0 {
			o.Status.Phase = corev1.PodFailed
		}
		if err := k.c.own.Status().Update(ctx, o); err != nil {
			return err
		}
	}
	if e.p.kind != "Job" {
		return nil // a Deployment's comes back at the next turn
	}
	return k.jobExited(ctx, e)
}

func (k *kubelet) jobExited(ctx context.Context, e exit) error {
	list := &batchv1.JobList{}
	if err := k.c.own.List(ctx, list); err != nil {
		return err
	}
	at := slices.IndexFunc(list.Items, func(j batchv1.Job) bool { return j.Name == e.p.owner })
	if at < 0 {
		return nil
	}
	j := &list.Items[at]
	end := batchv1.JobCondition{Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}
	now := metav1.Now()
	switch {
	case e.code == 0:
		end.Type, j.Status.Succeeded, j.Status.CompletionTime = batchv1.JobComplete, 1, &now
	case verdict(j.Spec.PodFailurePolicy, int32(e.code)) == batchv1.PodFailurePolicyActionFailJob:
		end.Type, end.Reason = batchv1.JobFailed, "PodFailurePolicy"
	case verdict(j.Spec.PodFailurePolicy, int32(e.code)) == batchv1.PodFailurePolicyActionIgnore:
		return nil // another pod at the next turn
	default:
		k.failures[j.Name]++
		j.Status.Failed = k.failures[j.Name]
		if j.Spec.BackoffLimit == nil || k.failures[j.Name] <= *j.Spec.BackoffLimit {
			return k.c.own.Status().Update(ctx, j)
		}
		end.Type, end.Reason = batchv1.JobFailed, "BackoffLimitExceeded"
	}
	j.Status.Active = 0
	j.Status.Conditions = append(j.Status.Conditions, end)
	k.r.put("job_finished", fields{"job": j.Name, "how": string(end.Type), "reason": end.Reason})
	return k.c.own.Status().Update(ctx, j)
}

// kill does something to the process of a pod, by name.
func (k *kubelet) kill(name string, how func(*pod) error) error {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	p := k.pods[name]
	if p == nil {
		return fmt.Errorf("no pod %q", name)
	}
	return how(p)
}
