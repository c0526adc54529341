//! Which tensors a checkpoint of a spec holds: their names on the hub and their shapes.

use crate::spec::Spec;

/// A matrix `[rows, cols]`, or a vector when `cols` is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub rows: usize,
    pub cols: Option<usize>,
}

impl Part {
    pub fn shape(&self) -> Vec<usize> {
        [Some(self.rows), self.cols].into_iter().flatten().collect()
    }

    /// Elements; the limits of [`Spec`] keep it far inside 64 bits.
    pub fn elements(&self) -> u64 {
        self.rows as u64 * self.cols.unwrap_or(1) as u64
    }
}

/// What a [`Block`] of the decoder does with its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Read by row, never multiplied. Stays in the checkpoint's type.
    Embedding,
    /// The last product. Stays in the checkpoint's type, for it decides the token.
    Head,
    /// A product inside a layer.
    Linear,
    /// The product that chooses experts. Stays in the checkpoint's type: a wrong choice is a wrong MLP.
    Router,
    /// A norm's weight or a bias: widened to f32, a thousandth of the whole.
    Vector,
}

/// Tensors that are stacked into one matrix along its rows; they must have one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub role: Role,
    pub parts: Vec<Part>,
}

impl Block {
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    pub fn cols(&self) -> usize {
        self.parts[0].cols.unwrap_or(1)
    }

    pub fn elements(&self) -> u64 {
        self.parts.iter().map(Part::elements).sum()
    }
}

/// One MLP: gate over up in one matrix, and the way back.
#[derive(Clone, Debug)]
pub struct Mlp {
    pub gate_up: Block,
    pub gate_up_bias: Option<Block>,
    pub down: Block,
    pub down_bias: Option<Block>,
}

#[derive(Clone, Debug)]
pub struct Layer {
    pub attention_norm: Block,
    pub qkv: Block,
    pub qkv_bias: Option<Block>,
    pub output: Block,
    pub output_bias: Option<Block>,
    pub mlp_norm: Block,
    pub router: Option<Block>,
    /// One, or as many as there are experts.
    pub mlps: Vec<Mlp>,
}

/// All tensors of a model in the order of the computation.
#[derive(Clone, Debug)]
pub struct Layout {
    pub embedding: Block,
    pub layers: Vec<Layer>,
    pub norm: Block,
    /// `None` when the embedding is the head.
    pub head: Option<Block>,
}

impl Layout {
    pub fn of(spec: &Spec) -> Layout {
        let named = |name: &str| format!("{}{name}", spec.prefix);
        let matrix = |role, name: &str, rows, cols| Block {
            role,
            parts: vec![Part { name: named(name), rows, cols: Some(cols) }],
        };
        let layers =
            (0..spec.layers).map(|layer| self::layer(spec, &named(&format!("model.layers.{layer}"))));
        Layout {
            embedding: matrix(Role::Embedding, "model.embed_tokens.weight", spec.vocab, spec.hidden),
            layers: layers.collect(),
            norm: vector(vec![(named("model.norm.weight"), spec.hidden)]),
            head: (!spec.tied).then(|| matrix(Role::Head, "lm_head.weight", spec.vocab, spec.hidden)),
        }
    }

    /// Every block, in order.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        let layers = self.layers.iter().flat_map(|layer| {
            let mlps = layer.mlps.iter().flat_map(|mlp| {
                [Some(&mlp.gate_up), mlp.gate_up_bias.as_ref(), Some(&mlp.down), mlp.down_bias.as_ref()]
            });
            [
                Some(&layer.attention_norm),
                Some(&layer.qkv),
                layer.qkv_bias.as_ref(),
                Some(&layer.output),
                layer.output_bias.as_ref(),
                Some(&layer.mlp_norm),
                layer.router.as_ref(),
            ]
            .into_iter()
            .chain(mlps)
            .flatten()
        });
        std::iter::once(&self.embedding).chain(layers).chain([&self.norm]).chain(&self.head)
    }

    /// Every tensor, in order.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.blocks().flat_map(|block| &block.parts)
    }
}

fn vector(parts: Vec<(String, usize)>) -> Block {
    let parts = parts.into_iter().map(|(name, rows)| Part { name, rows, cols: None }).collect();
    Block { role: Role::Vector, parts }
}

fn layer(spec: &Spec, at: &str) -> Layer {
    let (q, kv, hidden) = (spec.query_width(), spec.key_width(), spec.hidden);
    let matrix = |role, parts: &[(&str, usize)], cols| Block {
        role,
        parts: parts
            .iter()
            .map(|(name, rows)| Part { name: format!("{at}.{name}.weight"), rows: *rows, cols: Some(cols) })
            .collect(),
    };
    let bias = |on: bool, parts: &[(&str, usize)]| {
        on.then(|| vector(parts.iter().map(|(name, rows)| (format!("{at}.{name}.bias"), *rows)).collect()))
    };
    let norm = |name: &str| vector(vec![(format!("{at}.{name}.weight"), hidden)]);
    let heads = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
    let mlp = |gate: &str, up: &str, down: &str| Mlp {
        gate_up: matrix(Role::Linear, &[(gate, spec.ffn), (up, spec.ffn)], hidden),
        gate_up_bias: bias(spec.mlp_bias, &[(gate, spec.ffn), (up, spec.ffn)]),
        down: matrix(Role::Linear, &[(down, hidden)], spec.ffn),
        down_bias: bias(spec.mlp_bias, &[(down, hidden)]),
    };
    let mlps = match spec.experts {
        None => vec![mlp("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")],
        Some(experts) => (0..experts.count)
            .map(|expert| {
                let of = |w: &str| format!("block_sparse_moe.experts.{expert}.{w}");
                mlp(&of("w1"), &of("w3"), &of("w2"))
            })
            .collect(),
    };
    Layer {
        attention_norm: norm("input_layernorm"),
        qkv: matrix(Role::Linear, &heads, hidden),
        qkv_bias: bias(spec.qkv_bias, &heads),
        output: matrix(Role::Linear, &[("self_attn.o_proj", hidden)], q),
        output_bias: bias(spec.output_bias, &[("self_attn.o_proj", hidden)]),
        mlp_norm: norm("post_attention_layernorm"),
        router: spec
            .experts
            .map(|experts| matrix(Role::Router, &[("block_sparse_moe.gate", experts.count)], hidden)),
        mlps,
    }
}

/// Whether a tensor that no spec asks for may lie in the file all the same.
pub fn harmless(spec: &Spec, name: &str) -> bool {
    // Frequencies that old versions saved; they follow from config.json.
    name.ends_with(".rotary_emb.inv_freq")
        // A tied head that was saved a second time.
        || (spec.tied && name.strip_prefix(spec.prefix) == Some("lm_head.weight"))
        // The eyes of a model whose text part is served.
        || (!spec.prefix.is_empty()
            && ["vision_tower.", "multi_modal_projector."].iter().any(|part| name.starts_with(part)))
}
