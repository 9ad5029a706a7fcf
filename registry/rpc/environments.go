package rpc

import (
	"context"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
)

// environments is pb.EnvironmentServiceServer.
type environments struct {
	pb.UnsafeEnvironmentServiceServer
	*server
}

func (s environments) ListEnvironments(ctx context.Context, q *pb.ListEnvironmentsRequest) (*pb.ListEnvironmentsResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.ListEnvironmentsResponse, error) {
		all, err := s.Registry.Environments(ctx, actor)
		if err != nil {
			return nil, err
		}
		a := &pb.ListEnvironmentsResponse{}
		list, next, err := page(q, all, func(name string) string { return name },
			func(name string) (*pb.Environment, error) { return &pb.Environment{Name: name}, nil })
		for _, e := range list {
			a.Names = append(a.Names, e.GetName())
		}
		a.NextPageToken = next
		return a, err
	})
}

func (s environments) GetEnvironment(ctx context.Context, q *pb.GetEnvironmentRequest) (*pb.GetEnvironmentResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetEnvironmentResponse, error) {
		if err := required("name", q.GetName()); err != nil {
			return nil, err
		}
		when, err := asOf("as_of", q.GetAsOf())
		if err != nil {
			return nil, err
		}
		e, err := s.Registry.Environment(ctx, actor, q.GetName(), when)
		if err != nil {
			return nil, err
		}
		return &pb.GetEnvironmentResponse{Environment: environmentOf(e)}, nil
	})
}

func (s environments) ListDeployments(ctx context.Context, q *pb.ListDeploymentsRequest) (*pb.ListDeploymentsResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (a *pb.ListDeploymentsResponse, err error) {
		if err := required("environment", q.GetEnvironment()); err != nil {
			return nil, err
		}
		at, err := moment("at", q.GetAt())
		if err != nil {
			return nil, err
		}
		known, err := asOf("known", q.GetKnown())
		if err != nil {
			return nil, err
		}
		all, err := s.Registry.Deployments(ctx, actor, q.GetEnvironment(), at, known)
		if err != nil {
			return nil, err
		}
		if len(all) == 0 {
			// Nothing ran in it, or there is no such place?
			if _, err := s.Registry.Environment(ctx, actor, q.GetEnvironment(), registry.AsOf{}); err != nil {
				return nil, err
			}
		}
		a = &pb.ListDeploymentsResponse{}
		a.Deployments, a.NextPageToken, err = page(q, all, func(d registry.Deployment) string { return string(d.Statement) }, deploymentOf)
		return a, err
	})
}
