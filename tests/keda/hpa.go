package main

import (
	"context"
	"fmt"
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const tolerance = 0.1 // of kube-controller-manager

// hpa is our model of the HPA controller, for what KEDA makes of our manifests: one external metric
// with an AverageValue, the default way up, a way down that is disabled. It reads the very HPA that
// KEDA wrote, asks KEDA for the value as the metrics adapter does, and sets the scale.
type hpa struct {
	c *cluster
	o func() *operator
}

func (h hpa) run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := h.sync(ctx); err != nil {
				h.c.r.put("hpa_error", fields{"error": err.Error()})
			}
		}
	}
}

func (h hpa) sync(ctx context.Context) error {
	list := &autoscalingv2.HorizontalPodAutoscalerList{}
	if err := h.c.own.List(ctx, list); err != nil || h.o() == nil {
		return err // an operator that is away serves no metrics: the HPA holds
	}
	for i := range list.Items {
		if err := h.one(ctx, &list.Items[i]); err != nil {
			return err
		}
	}
	return nil
}

func (h hpa) one(ctx context.Context, a *autoscalingv2.HorizontalPodAutoscaler) error {
	down := a.Spec.Behavior != nil && a.Spec.Behavior.ScaleDown != nil &&
		a.Spec.Behavior.ScaleDown.SelectPolicy != nil &&
		*a.Spec.Behavior.ScaleDown.SelectPolicy == autoscalingv2.DisabledPolicySelect
	if len(a.Spec.Metrics) != 1 || a.Spec.Metrics[0].External == nil || !down {
		return fmt.Errorf("%s: this model knows one external metric and no way down", a.Name)
	}
	m := a.Spec.Metrics[0].External
	scaler := scales{c: h.c, who: "HPA", ns: a.Namespace}
	resource := schema.GroupResource{Group: "apps", Resource: "deployments"}
	at, err := scaler.Get(ctx, resource, a.Spec.ScaleTargetRef.Name, metav1.GetOptions{})
	if err != nil || at.Spec.Replicas == 0 {
		return err // zero replicas switch an HPA off
	}
	owner := m.Metric.Selector.MatchLabels["scaledobject.keda.sh/name"]
	values, err := h.o().handler.GetScaledObjectMetrics(ctx, owner, a.Namespace, m.Metric.Name)
	if err != nil {
		return err
	}
	value := values.Items[0].Value.AsApproximateFloat64()
	want := desired(value, m.Target.AverageValue.AsApproximateFloat64(), at.Spec.Replicas, a.Spec.MaxReplicas)
	h.c.r.put("hpa", fields{"metric": m.Metric.Name, "value": value, "replicas": at.Spec.Replicas,
		"target": m.Target.AverageValue.AsApproximateFloat64(), "max": a.Spec.MaxReplicas, "want": want})
	a.Status.Conditions = []autoscalingv2.HorizontalPodAutoscalerCondition{{
		Type: autoscalingv2.ScalingActive, Status: corev1.ConditionTrue, Reason: "ValidMetricFound"}}
	if err := h.c.own.Status().Update(ctx, a); err != nil || want == at.Spec.Replicas {
		return err
	}
	at.Spec.Replicas = want
	_, err = scaler.Update(ctx, resource, at, metav1.UpdateOptions{})
	return err
}

func desired(value, target float64, replicas, most int32) int32 {
	want := replicas
	if share := value / (target * float64(replicas)); math.Abs(share-1) > tolerance {
		want = int32(math.Ceil(value / target))
	}
	// The defaults of a behavior that is set: twice as many, or four more, whichever is more.
	want = min(want, max(2*replicas, replicas+4), most)
	return max(want, replicas)
}
