package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	appsv1 "k8s.io/api/apps/v1"

	eventingv1alpha1 "github.com/kedacore/keda/v2/apis/eventing/v1alpha1"
	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	kedacontrollers "github.com/kedacore/keda/v2/controllers/keda"
	"github.com/kedacore/keda/v2/pkg/scalers/authentication"
	"github.com/kedacore/keda/v2/pkg/scaling"
)

const scalerTimeout = 3 * time.Second // KEDA_HTTP_DEFAULT_TIMEOUT's default

// operator is one life of KEDA's: its two reconcilers and its scale handlers, wired as its main
// does. What delivers events to them (informers, the work queue) is replaced by reconcile().
type operator struct {
	c       *cluster
	jobs    *kedacontrollers.ScaledJobReconciler
	objects *kedacontrollers.ScaledObjectReconciler
	handler scaling.ScaleHandler // of ScaledObjects
	stop    context.CancelFunc
	ctx     context.Context
}

// manager is a real one that never starts; its recorder is ours.
type manager struct {
	ctrl.Manager
	recorder events.EventRecorder
}

func (m manager) GetEventRecorder(string) events.EventRecorder { return m.recorder }

type recorder struct{ r *records }

func (e recorder) Eventf(about runtime.Object, _ runtime.Object, kind, reason, _, note string, args ...any) {
	name := ""
	if o, ok := about.(client.Object); ok {
		name = o.GetName()
	}
	e.r.put("k8s_event", fields{"kind": kind, "reason": reason, "object": name,
		"text": fmt.Sprintf(note, args...)})
}

type emitter struct{ recorder }

func (emitter) DeleteCloudEventSource(eventingv1alpha1.CloudEventSourceInterface) error { return nil }
func (emitter) HandleCloudEventSource(context.Context, eventingv1alpha1.CloudEventSourceInterface) error {
	return nil
}

func (e emitter) Emit(o runtime.Object, _, kind string, _ eventingv1alpha1.CloudEventType, reason, message string) {
	e.Eventf(o, nil, kind, reason, reason, "%s", message)
}

func mapper(s *runtime.Scheme) meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(s.PrioritizedVersionsAllGroups())
	m.Add(appsv1.SchemeGroupVersion.WithKind("Deployment"), meta.RESTScopeNamespace)
	m.Add(kedav1alpha1.SchemeGroupVersion.WithKind("ScaledObject"), meta.RESTScopeNamespace)
	m.Add(kedav1alpha1.SchemeGroupVersion.WithKind("ScaledJob"), meta.RESTScopeNamespace)
	m.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	return m
}

func newManager(c *cluster, e events.EventRecorder) (manager, error) {
	yes := true
	real, err := ctrl.NewManager(&rest.Config{Host: "http://127.0.0.1:1"}, ctrl.Options{
		Scheme:     c.scheme,
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: &yes},
		MapperProvider: func(*rest.Config, *http.Client) (meta.RESTMapper, error) {
			return mapper(c.scheme), nil
		},
		NewCache: func(*rest.Config, cache.Options) (cache.Cache, error) {
			return &informertest.FakeInformers{Scheme: c.scheme}, nil
		},
		NewClient: func(*rest.Config, client.Options) (client.Client, error) { return c.keda, nil },
	})
	return manager{real, e}, err
}

func startOperator(c *cluster) (*operator, error) {
	e := recorder{c.r}
	m, err := newManager(c, e)
	if err != nil {
		return nil, err
	}
	o := &operator{c: c}
	o.ctx, o.stop = context.WithCancel(context.Background())
	auth := &authentication.AuthClientSet{}
	o.jobs = &kedacontrollers.ScaledJobReconciler{Client: c.keda, Scheme: c.scheme,
		GlobalHTTPTimeout: scalerTimeout, EventEmitter: emitter{e}, AuthClientSet: auth}
	if err := o.jobs.SetupWithManager(m, controller.Options{}); err != nil {
		return nil, err
	}
	scaler := scales{c: c, who: "KEDA"}
	o.handler = scaling.NewScaleHandler(c.keda, scaler, c.scheme, scalerTimeout, e, auth)
	o.objects = &kedacontrollers.ScaledObjectReconciler{Client: c.keda, Scheme: c.scheme,
		ScaleClient: scaler, ScaleHandler: o.handler, EventEmitter: emitter{e}}
	if err := o.objects.SetupWithManager(m, controller.Options{}); err != nil {
		return nil, err
	}
	return o, o.all()
}

// reconcile is what a changed object causes.
func (o *operator) reconcile(about client.Object) error {
	request := ctrl.Request{NamespacedName: client.ObjectKeyFromObject(about)}
	var err error
	if _, ok := about.(*kedav1alpha1.ScaledJob); ok {
		_, err = o.jobs.Reconcile(o.ctx, request)
	} else {
		_, err = o.objects.Reconcile(o.ctx, request)
	}
	return err
}

// all is what a start causes: everything that is there is looked at.
func (o *operator) all() error {
	jobs, objects := &kedav1alpha1.ScaledJobList{}, &kedav1alpha1.ScaledObjectList{}
	if err := o.c.own.List(o.ctx, jobs); err != nil {
		return err
	}
	if err := o.c.own.List(o.ctx, objects); err != nil {
		return err
	}
	for i := range jobs.Items {
		if err := o.reconcile(&jobs.Items[i]); err != nil {
			return err
		}
	}
	for i := range objects.Items {
		if err := o.reconcile(&objects.Items[i]); err != nil {
			return err
		}
	}
	return nil
}
