package rpc

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry/access"
)

const (
	// maxCollected is how many blobs an answer names; the log names all.
	maxCollected = 10_000

	// defaultScrub is how many bytes one call reads if nothing is said.
	defaultScrub = 64 << 20
)

// maintenance is pb.MaintenanceServiceServer.
type maintenance struct {
	pb.UnsafeMaintenanceServiceServer
	*server
}

func (s maintenance) Collect(ctx context.Context, q *pb.CollectRequest) (*pb.CollectResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.CollectResponse, error) {
		c, err := s.Registry.Collect(ctx, actor, q.GetDryRun())
		if err != nil {
			return nil, err
		}
		a := &pb.CollectResponse{
			DryRun: c.DryRun, FreedBytes: c.Freed, Uploads: int32(c.Uploads), Unnamed: int32(c.Unnamed), UnnamedBytes: c.UnnamedBytes,
		}
		for i, b := range c.Blobs {
			if i == maxCollected {
				a.MoreBlobs = true
				break
			}
			a.Blobs = append(a.Blobs, &pb.CollectedBlob{Repository: b.Repository, Digest: string(b.Digest), Size: b.Size, Since: timestamppb.New(b.Since)})
		}
		for _, d := range c.Missing {
			a.Missing = append(a.Missing, string(d))
		}
		return a, nil
	})
}

func (s maintenance) Scrub(ctx context.Context, q *pb.ScrubRequest) (*pb.ScrubResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.ScrubResponse, error) {
		budget := q.GetBudgetBytes()
		switch {
		case budget < 0:
			return nil, fmt.Errorf("%w: budget_bytes is %d", errRequest, budget)
		case budget == 0:
			budget = defaultScrub
		}
		r, err := s.Registry.Scrub(ctx, actor, q.GetFrom(), budget)
		if err != nil {
			return nil, err
		}
		a := &pb.ScrubResponse{Checked: int32(r.Checked), Bytes: r.Bytes, Next: r.Next}
		for _, d := range r.Damaged {
			a.Damaged = append(a.Damaged, string(d))
		}
		return a, nil
	})
}
