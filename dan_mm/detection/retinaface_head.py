# Copyright (c) dan_mm contributors. All rights reserved.
from typing import List, Optional, Sequence, Tuple

import torch
from mmdet.models.dense_heads import AnchorHead
from mmdet.registry import MODELS
from mmdet.utils import (ConfigType, InstanceList, OptConfigType,
                         OptInstanceList)
from mmengine.structures import InstanceData
from torch import Tensor

from ..models.retinaface import RetinaFaceOutputs, select_anchors


@MODELS.register_module()
class RetinaFaceHead(AnchorHead):
    """The head of `RetinaFace: Single-stage Dense Face Localisation in the
    Wild <https://arxiv.org/abs/1905.00641>`_: for each anchor the scores of
    face and background, a box and five landmarks.

    Modified from https://github.com/biubug6/Pytorch_Retinaface, whose weights
    can be converted. Predictions have ``keypoints`` of shape ``(N, 5, 2)``:
    left eye, right eye, nose tip, left and right corner of the mouth as seen
    in the image, in its pixels. They and the boxes can lie outside of it.

    The losses of an image are those of the face anchors and of the
    ``neg_pos_ratio`` times as many background anchors with the highest loss.
    ``gt_instances`` may have ``keypoints`` of shape ``(N, 5, 3)``, the third
    number being positive where the landmark is known; landmarks that are not
    have no loss. Where the best anchor of a face reaches less than the
    assigner's ``min_pos_iou``, nothing is learned from that face; the original
    code lets it take that anchor from another face.

    Args:
        in_channels (int): The channels of each feature map.
        num_keypoints (int): The number of landmarks. Defaults to 5.
        anchor_generator (dict): Defaults to RetinaFace's anchors of 16, 32,
            64, 128, 256 and 512 pixels.
        bbox_coder (dict): Its ``target_stds`` are RetinaFace's variances. The
            landmarks are relative to the anchor, too, with the same spread as
            the centre of the box.
        loss_cls (dict): The loss of the scores.
        loss_bbox (dict): The loss of the boxes.
        loss_keypoints (dict): The loss of the landmarks.
        train_cfg (dict, optional): ``assigner`` and ``neg_pos_ratio``.
        test_cfg (dict, optional): ``score_thr``, ``nms``, ``max_per_img`` and
            ``nms_pre``, the number of boxes of all levels to keep before that.
        init_cfg (dict | list[dict], optional): How to initialize the weights.
    """

    def __init__(
        self,
        in_channels: int,
        num_keypoints: int = 5,
        anchor_generator: ConfigType = dict(
            type='AnchorGenerator',
            base_sizes=[16, 64, 256],
            scales=[1, 2],
            ratios=[1.0],
            strides=[8, 16, 32],
            centers=[(4, 4), (8, 8), (16, 16)]),
        bbox_coder: ConfigType = dict(
            type='DeltaXYWHBBoxCoder',
            target_stds=(0.1, 0.1, 0.2, 0.2),
            clip_border=False),
        loss_cls: ConfigType = dict(
            type='CrossEntropyLoss', use_sigmoid=False),
        loss_bbox: ConfigType = dict(
            type='SmoothL1Loss', beta=1.0, loss_weight=2.0),
        loss_keypoints: ConfigType = dict(type='SmoothL1Loss', beta=1.0),
        train_cfg: OptConfigType = None,
        test_cfg: OptConfigType = None,
        init_cfg: OptConfigType = dict(
            type='Normal', layer='Conv2d', std=0.01)
    ) -> None:
        self.num_keypoints = num_keypoints
        super().__init__(
            1,
            in_channels,
            anchor_generator=anchor_generator,
            bbox_coder=bbox_coder,
            loss_cls=loss_cls,
            loss_bbox=loss_bbox,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg)
        self.loss_keypoints = MODELS.build(loss_keypoints)
        self._priors: dict = {}

    def _init_layers(self) -> None:
        """Make a convolution for each level and output."""
        outputs = RetinaFaceOutputs(self.in_channels,
                                    self.prior_generator.num_base_priors,
                                    self.num_keypoints)
        self.conv_cls, self.conv_reg, self.conv_kpt = outputs.children()

    forward = RetinaFaceOutputs.forward

    def _get_priors(self, maps: Sequence[Tensor]) -> List[Tensor]:
        """The anchors of each map; images of the same size share them."""
        sizes = [tuple(level.shape[-2:]) for level in maps]
        key = (*sizes, maps[0].device)
        if key not in self._priors:
            # Tensors of inference mode could not be trained with.
            with torch.inference_mode(False):
                priors = self.prior_generator.grid_priors(
                    sizes, device=maps[0].device)
            self._priors = {key: priors}
        return self._priors[key]

    def decode_keypoints(self, priors: Tensor, preds: Tensor) -> Tensor:
        """Decode landmarks.

        Args:
            priors (Tensor): Anchors of shape ``(N, 4)``.
            preds (Tensor): Shape ``(N, 10)``.

        Returns:
            Tensor: Shape ``(N, 5, 2)``, in pixels.
        """
        centers, spread = self._keypoint_frame(priors)
        return preds.unflatten(1, (-1, 2)) * spread + centers

    def encode_keypoints(self, priors: Tensor, keypoints: Tensor) -> Tensor:
        """Encode landmarks, the inverse of :meth:`decode_keypoints`.

        Args:
            priors (Tensor): Anchors of shape ``(N, 4)``.
            keypoints (Tensor): Shape ``(N, 5, 2)``, in pixels.

        Returns:
            Tensor: Shape ``(N, 10)``.
        """
        centers, spread = self._keypoint_frame(priors)
        return ((keypoints - centers) / spread).flatten(1)

    def _keypoint_frame(self, priors: Tensor) -> Tuple[Tensor, Tensor]:
        centers = (priors[:, None, :2] + priors[:, None, 2:]) / 2
        sizes = priors[:, None, 2:] - priors[:, None, :2]
        return centers, sizes * sizes.new_tensor(self.bbox_coder.stds[:2])

    def loss_by_feat(
            self,
            cls_scores: List[Tensor],
            bbox_preds: List[Tensor],
            kpt_preds: List[Tensor],
            batch_gt_instances: InstanceList,
            batch_img_metas: List[dict],
            batch_gt_instances_ignore: OptInstanceList = None) -> dict:
        """Compute the losses, in float32.

        Args:
            cls_scores (list[Tensor]): As :meth:`forward` returns them.
            bbox_preds (list[Tensor]): As :meth:`forward` returns them.
            kpt_preds (list[Tensor]): As :meth:`forward` returns them.
            batch_gt_instances (list[InstanceData]): ``bboxes``, ``labels``,
                and ``keypoints`` where there are any.
            batch_img_metas (list[dict]): Not used.
            batch_gt_instances_ignore (list[InstanceData], optional): Faces
                that are neither face nor background, where the assigner has
                ``ignore_iof_thr``. Defaults to None.

        Returns:
            dict: ``loss_cls``, ``loss_bbox`` and ``loss_keypoints``.
        """
        priors = torch.cat(self._get_priors(cls_scores))

        def flatten(maps: List[Tensor], size: int) -> Tensor:
            return torch.cat([
                level.permute(0, 2, 3, 1).reshape(len(level), -1, size)
                for level in maps
            ], 1).float()

        cls_scores = flatten(cls_scores, self.cls_out_channels)
        bbox_preds = flatten(bbox_preds, self.bbox_coder.encode_size)
        kpt_preds = flatten(kpt_preds, 2 * self.num_keypoints)

        ignored = batch_gt_instances_ignore or [None] * len(batch_gt_instances)
        # 1 and up is a face, 0 is background, -1 is neither.
        assigned = torch.stack([
            self.assigner.assign(
                InstanceData(priors=priors), gt_instances, ignore).gt_inds
            for gt_instances, ignore in zip(batch_gt_instances, ignored)
        ])
        faces = assigned > 0
        num_faces = faces.sum().clamp(min=1)

        losses = self.loss_cls(
            cls_scores.flatten(0, 1), (~faces).long().flatten(),
            reduction_override='none').view_as(faces)
        chosen = faces | self._mine_background(losses.detach(), faces, assigned
                                               == 0)
        loss_cls = losses[chosen].sum() / num_faces

        face_priors = priors.expand(len(faces), -1, -1)[faces]
        matched = [inds[inds > 0] - 1 for inds in assigned]
        bboxes = torch.cat([
            gt_instances.bboxes[inds].to(priors)
            for gt_instances, inds in zip(batch_gt_instances, matched)
        ])
        loss_bbox = self.loss_bbox(
            bbox_preds[faces],
            self.bbox_coder.encode(face_priors, bboxes),
            avg_factor=num_faces)

        keypoints = torch.cat([
            gt_instances.keypoints[inds].to(priors)
            if 'keypoints' in gt_instances else priors.new_zeros(
                len(inds), self.num_keypoints, 3)
            for gt_instances, inds in zip(batch_gt_instances, matched)
        ])
        known = keypoints[..., 2] > 0
        loss_keypoints = self.loss_keypoints(
            kpt_preds[faces],
            self.encode_keypoints(face_priors, keypoints[..., :2]),
            known.repeat_interleave(2, 1).float(),
            avg_factor=known.any(1).sum().clamp(min=1))
        return dict(
            loss_cls=loss_cls,
            loss_bbox=loss_bbox,
            loss_keypoints=loss_keypoints)

    def _mine_background(self, losses: Tensor, faces: Tensor,
                         background: Tensor) -> Tensor:
        """Choose the background anchors with the highest losses, all of shape
        ``(B, anchors)``."""
        number = self.train_cfg['neg_pos_ratio'] * faces.sum(1, keepdim=True)
        ranks = losses.masked_fill(~background, -1).argsort(
            1, descending=True).argsort(1)
        return background & (ranks < number)

    def predict_by_feat(self,
                        cls_scores: List[Tensor],
                        bbox_preds: List[Tensor],
                        kpt_preds: List[Tensor],
                        batch_img_metas: List[dict],
                        cfg: OptConfigType = None,
                        rescale: bool = False,
                        with_nms: bool = True) -> InstanceList:
        """Decode the faces of a batch.

        Args:
            cls_scores (list[Tensor]): As :meth:`forward` returns them.
            bbox_preds (list[Tensor]): As :meth:`forward` returns them.
            kpt_preds (list[Tensor]): As :meth:`forward` returns them.
            batch_img_metas (list[dict]): With ``scale_factor`` where
                ``rescale`` is set.
            cfg (dict, optional): Defaults to None, ``test_cfg``.
            rescale (bool): Whether to return pixels of the original image.
                Defaults to False.
            with_nms (bool): Whether to suppress boxes that overlap. Defaults
                to True.

        Returns:
            list[InstanceData]: ``bboxes`` of shape ``(N, 4)``, ``scores`` and
            ``labels`` of shape ``(N, )`` and ``keypoints`` of shape
            ``(N, 5, 2)``.
        """
        cfg = cfg or self.test_cfg
        priors = self._get_priors(cls_scores)
        results_list = []
        for number, img_meta in enumerate(batch_img_metas):
            found = []
            for *levels, level_priors in zip(cls_scores, bbox_preds, kpt_preds,
                                             priors):
                levels = [level[number].detach() for level in levels]
                found.append(
                    select_anchors(levels, level_priors,
                                   cfg.get('score_thr', 0)))
            scores, bboxes, keypoints, kept = map(torch.cat, zip(*found))
            if 0 < cfg.get('nms_pre', -1) < len(scores):
                scores, inds = scores.topk(cfg['nms_pre'])
                bboxes, keypoints = bboxes[inds], keypoints[inds]
                kept = kept[inds]
            results = InstanceData(
                bboxes=self.bbox_coder.decode(kept, bboxes),
                scores=scores,
                labels=scores.new_zeros(len(scores), dtype=torch.long),
                keypoints=self.decode_keypoints(kept, keypoints))
            results_list.append(
                self._bbox_post_process(results, cfg, rescale, with_nms,
                                        img_meta))
        return results_list

    def _bbox_post_process(self,
                           results: InstanceData,
                           cfg: ConfigType,
                           rescale: bool = False,
                           with_nms: bool = True,
                           img_meta: Optional[dict] = None) -> InstanceData:
        """Rescale boxes and landmarks, and suppress boxes that overlap."""
        if rescale:
            # The host rescales the boxes only.
            factor = results.keypoints.new_tensor(img_meta['scale_factor'])
            results.keypoints = results.keypoints / factor
        return super()._bbox_post_process(
            results,
            cfg,
            rescale=rescale,
            with_nms=with_nms,
            img_meta=img_meta)
