package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/scale"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	eventingv1alpha1 "github.com/kedacore/keda/v2/apis/eventing/v1alpha1"
	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
)

// cluster is the API that KEDA and the kubelet share: controller-runtime's fake client, with what a
// real server adds where the fake one does not (generations, creation times, the default of
// replicas, stringData), and a record of each write that KEDA makes to a Job.
type cluster struct {
	scheme *runtime.Scheme
	own    client.WithWatch // ours
	keda   client.WithWatch // KEDA's: what it does through this one is on record
	r      *records
}

func newCluster(r *records) *cluster {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme,
		kedav1alpha1.AddToScheme, eventingv1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	c := &cluster{scheme: s, r: r}
	c.own = fake.NewClientBuilder().WithScheme(s).WithStatusSubresource(
		&kedav1alpha1.ScaledJob{}, &kedav1alpha1.ScaledObject{}, &kedav1alpha1.TriggerAuthentication{},
		&batchv1.Job{}, &corev1.Pod{}, &appsv1.Deployment{},
		&autoscalingv2.HorizontalPodAutoscaler{}).Build()
	c.keda = interceptor.NewClient(c.own, interceptor.Funcs{Create: c.create, Delete: c.remove})
	return c
}

func (c *cluster) create(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.CreateOption) error {
	o.SetCreationTimestamp(metav1.Now())
	if err := w.Create(ctx, o, opts...); err != nil {
		return err
	}
	c.r.put("created", fields{"kind": fmt.Sprintf("%T", o), "name": o.GetName(),
		"generation": o.GetAnnotations()["scaledjob.keda.sh/generation"]})
	return nil
}

func (c *cluster) remove(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
	finished := false
	if job, ok := o.(*batchv1.Job); ok {
		finished = jobFinished(job)
	}
	c.r.put("deleted", fields{"kind": fmt.Sprintf("%T", o), "name": o.GetName(), "finished": finished})
	return w.Delete(ctx, o, opts...)
}

func jobFinished(j *batchv1.Job) bool {
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

// What the manifests hold besides these (network policies, accounts, ..) is for parts of a cluster
// that are not here.
func typed(kind string) client.Object {
	switch kind {
	case "ScaledJob":
		return &kedav1alpha1.ScaledJob{}
	case "ScaledObject":
		return &kedav1alpha1.ScaledObject{}
	case "TriggerAuthentication":
		return &kedav1alpha1.TriggerAuthentication{}
	case "Deployment":
		return &appsv1.Deployment{}
	case "Secret":
		return &corev1.Secret{}
	case "ConfigMap":
		return &corev1.ConfigMap{}
	}
	return nil
}

// defaults fills what the server would, or keeps, as `kubectl apply` does with a field that no
// manifest of ours has ever set.
func defaults(o, old client.Object) {
	switch v := o.(type) {
	case *appsv1.Deployment:
		if before, ok := old.(*appsv1.Deployment); ok && v.Spec.Replicas == nil {
			v.Spec.Replicas = before.Spec.Replicas
		}
		if v.Spec.Replicas == nil {
			one := int32(1)
			v.Spec.Replicas = &one
		}
	case *corev1.Secret:
		if v.Data == nil {
			v.Data = map[string][]byte{}
		}
		for k, text := range v.StringData {
			v.Data[k] = []byte(text)
		}
		v.StringData = nil
	}
}

// apply makes or replaces the objects of a file of YAML documents, as `kubectl apply` would; it
// returns KEDA's own among them, to be reconciled. A field that the type lacks is an error.
func (c *cluster) apply(ctx context.Context, path string) ([]client.Object, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []map[string]any
	if err := yaml.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	var scaled []client.Object
	for _, document := range list {
		kind, _ := document["kind"].(string)
		o := typed(kind)
		if o == nil {
			continue
		}
		raw, err := yaml.Marshal(document)
		if err == nil {
			err = yaml.UnmarshalStrict(raw, o)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		if err := c.put(ctx, o); err != nil {
			return nil, fmt.Errorf("%s %s: %w", kind, o.GetName(), err)
		}
		if kind == "ScaledJob" || kind == "ScaledObject" {
			scaled = append(scaled, o)
		}
	}
	return scaled, nil
}

func (c *cluster) put(ctx context.Context, o client.Object) error {
	old := typed(o.GetObjectKind().GroupVersionKind().Kind)
	err := c.own.Get(ctx, client.ObjectKeyFromObject(o), old)
	if apierrors.IsNotFound(err) {
		defaults(o, nil)
		o.SetGeneration(1)
		o.SetUID(types.UID(o.GetName()))
		o.SetCreationTimestamp(metav1.Now())
		return c.own.Create(ctx, o)
	}
	if err != nil {
		return err
	}
	defaults(o, old)
	o.SetResourceVersion(old.GetResourceVersion())
	o.SetUID(old.GetUID())
	o.SetCreationTimestamp(old.GetCreationTimestamp())
	o.SetFinalizers(old.GetFinalizers())
	o.SetGeneration(old.GetGeneration())
	if specChanged(old, o) {
		o.SetGeneration(old.GetGeneration() + 1)
	}
	return c.own.Update(ctx, o)
}

func specChanged(old, new client.Object) bool {
	spec := func(o client.Object) any {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			return nil
		}
		return content["spec"]
	}
	return !equality.Semantic.DeepEqual(spec(old), spec(new))
}

// scales is the /scale subresource of Deployments; who: KEDA or the HPA.
type scales struct {
	c   *cluster
	who string
	ns  string
}

func (s scales) Scales(ns string) scale.ScaleInterface { return scales{s.c, s.who, ns} }

func (s scales) get(ctx context.Context, name string) (*appsv1.Deployment, error) {
	d := &appsv1.Deployment{}
	return d, s.c.own.Get(ctx, types.NamespacedName{Namespace: s.ns, Name: name}, d)
}

func (s scales) Get(ctx context.Context, _ schema.GroupResource, name string, _ metav1.GetOptions) (*autoscalingv1.Scale, error) {
	d, err := s.get(ctx, name)
	if err != nil {
		return nil, err
	}
	return &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.ns},
		Spec:   autoscalingv1.ScaleSpec{Replicas: *d.Spec.Replicas},
		Status: autoscalingv1.ScaleStatus{Replicas: d.Status.Replicas}}, nil
}

func (s scales) Update(ctx context.Context, _ schema.GroupResource, to *autoscalingv1.Scale, _ metav1.UpdateOptions) (*autoscalingv1.Scale, error) {
	for range 10 {
		d, err := s.get(ctx, to.Name)
		if err != nil {
			return nil, err
		}
		from := *d.Spec.Replicas
		d.Spec.Replicas = &to.Spec.Replicas
		err = s.c.own.Update(ctx, d)
		if apierrors.IsConflict(err) {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err == nil {
			s.c.r.put("replicas", fields{"who": s.who, "from": from, "to": to.Spec.Replicas})
		}
		return to, err
	}
	return nil, errors.New("scale: conflict after conflict")
}

func (s scales) Patch(context.Context, schema.GroupVersionResource, string, types.PatchType, []byte, metav1.PatchOptions) (*autoscalingv1.Scale, error) {
	return nil, errors.New("scale: KEDA patches none")
}
