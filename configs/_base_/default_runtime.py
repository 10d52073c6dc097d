_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['dan_mm'])

custom_hooks = [dict(type='ClassNumCheckHook')]
